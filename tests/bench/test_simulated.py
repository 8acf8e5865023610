"""The simulated challenge of bench/scale.py."""

from __future__ import annotations

from bench import simulated


def test_a_simulated_challenge_is_trained_on(tmp_path):
    """Two crops in two datasets, and one for validation, whose classes are links."""
    table = tmp_path / "crops.csv"
    lines = ["# made up", "crop,dataset,voxel_size,translation,shape,classes"]
    lines += [f"{number},data{number % 2},8;8;8,0;0;0,300;200;100,all" for number in range(8)]
    table.write_text("\n".join(lines) + "\n")
    crops = simulated.crops_of(table, 4)
    assert {crop.shape for crop in crops} == {(75, 50, 48)}
    simulated.write(tmp_path / "data", crops)
    figures = simulated.measure(tmp_path / "data", workers=0, seconds=0)
    assert figures["decoded"] > 7 * 75 * 50 * 48 * 2 / 1e9
    assert figures["opening"] > 0 and figures["workers"] == 0

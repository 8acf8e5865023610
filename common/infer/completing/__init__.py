"""Labels of training crops, completed by networks of single classes."""

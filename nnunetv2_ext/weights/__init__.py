"""Weights from outside: reading foreign files safely, and the names that published weights have."""

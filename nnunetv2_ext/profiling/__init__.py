"""What a network costs, module by module."""

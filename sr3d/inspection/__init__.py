"""What is in a file or folder, and what is wrong with it: `sr3d inspect`."""

"""What a user has outside this repository: tests copy it into a folder of their own."""

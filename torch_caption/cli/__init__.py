"""The commands of `torch_caption.__main__`: each a `main(args, prog)` that parses, calls and prints."""

"""Uploads a model to the Hugging Face hub: `python -m sd_tf.push --model runs/mine --to organisation/name`.

The token is that of `hf auth login`, or of $HF_TOKEN.
"""

from sd_tf import commandline, families


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, reads the model, uploads it and prints its address."""
    flags = _parser().parse_args(arguments)
    families.check(flags.model)
    commandline.load_tensorflow()
    import sd_tf

    model = sd_tf.load(flags.model)
    url = model.push_to_hub(
        flags.to,
        private=flags.private,
        revision=flags.revision,
        create_pr=flags.create_pr,
        commit_message=flags.commit_message,
        card=flags.card,
        license=flags.license,
        base_model=flags.base_model,
        prompts=flags.prompt,
        dtype=flags.dtype,
        max_shard_size=flags.max_shard_size,
    )
    print(url)


def _parser():
    parser = commandline.Parser("python -m sd_tf.push", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, such as that of a run, or a bundled name")
    parser.add_argument(
        "--to", required=True, metavar="ORGANISATION/NAME", help="repository; made if missing"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--license", help="the hub's identifier, such as apache-2.0 (default: none)")
    parser.add_argument("--base-model", help="hub id of the model that it was fine-tuned from")
    parser.add_argument(
        "--prompt", action="append", help="a prompt to draw for the model card; may be repeated"
    )
    parser.add_argument(
        "--card",
        help="a Markdown file, or new (default: that on the hub, or that in the model's folder, or new)",
    )
    parser.add_argument("--revision", help="branch; made if missing (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--commit-message", default="Upload a model of sd_tf", help="of the one commit")
    parser.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16 (default: float32)")
    parser.add_argument("--max-shard-size", default="10GB", help="the most bytes of one file (default: 10GB)")
    return parser


if __name__ == "__main__":
    commandline.run(main)

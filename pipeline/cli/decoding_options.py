"""Options that mean the same in every command that writes text."""

import typer

ALPHA_0 = typer.Option(help="Share of tokens that an Eso-LM writes by diffusion, 0 to 1.")
STEPS = typer.Option(help="Diffusion steps; of a BD3-LM, in each block.")
SCHEDULE = typer.Option(help="binomial (as trained), fixed, strided, or confidence (biased).")
LENGTH = typer.Option(help="Tokens of a sample, prompt included.")
IGNORE_EOS = typer.Option("--ignore-eos", help="Write --length tokens, whatever ends a document.")
MAX_NEW_TOKENS = typer.Option(help="Tokens behind the prompt, in place of --length.")
PROMPT = typer.Option(help="How every sample begins.")
PROMPTS = typer.Option(
    help="A file with a prompt on each line, or JSON lines with a field 'prompt'; "
    "- is standard input.",
    allow_dash=True,
)
INFILL = typer.Option(help="Text with gaps: [[5]] is five tokens, [[3-8]] the likeliest of 3 to 8.")
TOP_P = typer.Option(help="Nucleus; 1 keeps all tokens.")
TOP_K = typer.Option(help="So many likeliest tokens; 0: all.")
TEMPERATURE = typer.Option(help="0 takes the likeliest token.")
GUESSES = typer.Option(
    help="Tokens guessed ahead in the sequential phase; the text's chances stay."
)
ADAPTIVE = typer.Option(
    help="Guess fewer where guesses do not hold, up to --guesses where they do.",
    show_default="as the bundle says",
)
DTYPE = typer.Option(help="fp32, bf16 or int8; by default fp32 on a CPU.")
SEED = typer.Option(help="The same seed writes the same text.")
NUM_SAMPLES = typer.Option(min=1, help="Samples, of each prompt.")
CUDA_GRAPHS = typer.Option(help="Replay passes that come often, on a GPU.", show_default="yes")
STREAM = typer.Option("--stream", help="Print a single text as it becomes whole.")
COMPARE = typer.Option("--compare", help="Also time decoding without the cache.")
AS_JSON = typer.Option("--json", help="Print one JSON object; a line for each of --prompts.")

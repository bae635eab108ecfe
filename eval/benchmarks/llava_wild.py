"""LLaVA Bench (in the wild; arXiv 2310.03744): 60 questions about 24 images, scored by a judge.

It is scored as LLaVA Bench (COCO) is: `llava_bench.py`. Facts from github.com/haotian-liu/LLaVA,
`llava/eval/eval_gpt_review_bench.py`: the judge sees captions in place of boxes, and the rules of
the rule file are called llava_bench_conv, llava_bench_detail and llava_bench_complex. LLaVA's
summary counts a review without two scores as -1 for both answers; here, it is missing.
"""

from typing import ClassVar

from eval.benchmarks.llava_bench import LLaVABench
from eval.inputs.json_rows import JsonRow


class LLaVAWild(LLaVABench):
    """The benchmark's questions, references and captions, from the user's copies of its files."""

    name = "llava_wild"
    context_fields: ClassVar[tuple[str, ...]] = ("image", "caption")
    rule_prefix: ClassVar[str] = "llava_bench_"

    def describe(self, context: JsonRow) -> str:
        """Return the captions of an image, one a line."""
        caption = context["caption"]
        return "\n".join(caption) if isinstance(caption, list) else caption

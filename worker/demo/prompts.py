"""The prompts of the demo: small jobs as backend services submit them to a language model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """One prompt and the maximum number of output tokens."""

    #: Shown in the table of results.
    title: str
    text: str
    max_tokens: int
    stop: str = "\n\n"


def demo_prompts() -> tuple[DemoPrompt, ...]:
    """Return the 32 prompts of the demo, of different kinds and lengths."""
    return (
        *(DemoPrompt(f"Describe: {it}", _description_prompt(it), 56) for it in _PRODUCTS),
        *(DemoPrompt(f"Summarise: {it}", _summary_prompt(it), 48) for it in _TO_SUMMARISE),
        *(DemoPrompt(it, _question_prompt(it), 40) for it in _QUESTIONS),
        *(DemoPrompt(f"Subject of: {it}", _subject_prompt(it), 16) for it in _MAILS),
    )


def demo_chat() -> list[dict[str, str]]:
    """Return the chat of the demo."""
    return [
        {"role": "system", "content": "You are the friendly help desk of a bicycle shop."},
        {"role": "user", "content": "My brakes squeal when it rains. Is that dangerous?"},
        {"role": "assistant", "content": "Usually it is only water and dirt on the rims."},
        {"role": "user", "content": "What can I do about it myself, at home, without tools?"},
    ]


# Each begins with a worked example: a small model follows a pattern better than an instruction, and
# the prompts of a kind share a prefix, which the engine computes once.
def _description_prompt(product: str) -> str:
    return (
        "Descriptions from the catalogue of an online shop.\n\n"
        "Product: soap dish made of olive wood\n"
        "Description: Every piece is turned from one block of olive wood and oiled by hand. The "
        "grooves let the water run off, so that your soap stays dry and lasts longer.\n\n"
        f"Product: {product}\nDescription:"
    )


def _summary_prompt(text: str) -> str:
    return (
        "Text: The bakery on the corner opens an hour earlier from Monday, because many customers "
        "asked for fresh rolls before their train leaves.\n"
        "In one sentence: The bakery opens an hour earlier so that commuters get fresh rolls.\n\n"
        f"Text: {text}\nIn one sentence:"
    )


def _question_prompt(question: str) -> str:
    return (
        "Q: Which metal is liquid at room temperature?\nA: Mercury is liquid at room temperature."
        f"\n\nQ: {question}\nA:"
    )


def _subject_prompt(mail: str) -> str:
    return (
        "E-mail: Where is my order 118? It should have come on Monday.\n"
        "Subject: Late delivery of order 118\n\n"
        "E-mail: The jacket is too small. How do I send it back?\n"
        "Subject: Return of a jacket\n\n"
        f"E-mail: {mail}\nSubject:"
    )


_PRODUCTS = (
    "stainless steel water bottle, 750 ml, keeps drinks cold for 24 hours",
    "wool hiking socks, grey, sizes 36 to 46",
    "desk lamp with three colours of light and a USB port",
    "cast iron pan, 28 cm, for gas, induction and open fire",
    "folding bicycle, 8 gears, 11.5 kg, folds in 15 seconds, with mudguards and lights",
    "notebook, 160 dotted pages, recycled paper",
    "children's rain jacket, waterproof, reflective stripes, made of recycled bottles",
    "bird feeder made of larch wood",
    "wireless headphones with noise cancelling and 40 hours of battery life",
    "hand cream with almond oil, 75 ml",
    "tent for two people, 1.9 kg, stands in four minutes",
    "espresso machine with a milk frother, 15 bar, removable water tank of 1.2 litres",
)

_TO_SUMMARISE = (
    "The library on Mill Street will be closed from Monday until Thursday while its heating is "
    "replaced. Books that are due in this time can be returned until the following Saturday "
    "without a fee. The reading room in the town hall stays open and has the daily newspapers.",
    "Our team looked into the slow checkout of last week. The database was waiting for a lock that "
    "a nightly report held for up to forty seconds. The report now reads from the replica, and the "
    "checkout has answered within two seconds since Tuesday. We have added an alert for locks that "
    "are held for longer than five seconds.",
    "Rye bread keeps longer than wheat bread because it holds more water and is more acidic.",
    "The council discussed three proposals for the old railway yard. The first is a park with a "
    "pond, the second a school for four hundred children, and the third a mix of flats and "
    "workshops. The park is the cheapest, but the school has waited for a site for nine years. The "
    "mayor asked for a survey of the soil before anything is decided, because diesel was stored "
    "there until 1987. Its result is expected in spring, and residents can send their views to the "
    "planning office until the end of the year.",
    "Customers praise the backpack's many pockets and its light weight. Several say that the zip "
    "of the front pocket is hard to close when the bag is full. Two had to send it back because a "
    "strap came loose, and both were sent a new one within a week.",
    "The ferry runs every forty minutes in summer and every two hours in winter. Bicycles travel "
    "free of charge outside the school holidays.",
    "In the third quarter the company sold 18,400 heat pumps, 12 percent more than a year before. "
    "Revenue rose by 9 percent, as smaller models made up more of the sales. The order book is "
    "full until May, and a second shift starts in the factory in January.",
    "To renew a passport you need the old one, a photo that is not older than six months and the "
    "fee of 60 euros. It takes about four weeks; in the express procedure it takes three days.",
)

_QUESTIONS = (
    "What is the capital of Norway?",
    "Why is the sky blue?",
    "How do I remove a coffee stain from a cotton shirt?",
    "What is the difference between a queue and a stack?",
    "How many minutes does it take to boil an egg until it is hard?",
    "Why do leaves change their colour in autumn?",
    "What should I write in a message to thank a colleague for their help?",
    "Which planet of the solar system is the largest?",
)

_MAILS = (
    "Hello, my parcel arrived today, but the glass bowl in it is broken. Can you send another one?",
    "Hi, I ordered the blue curtains by mistake and would like the green ones instead.",
    "Good morning, please change the address of my subscription. We move on the first of May.",
    "I was charged twice for order 20417. Please check and return one of the payments.",
)

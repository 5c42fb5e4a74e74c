import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from polyalign.errors import DataError, OptionError
from polyalign.judges.endpoint import EndpointJudge, verdict_in
from polyalign.judges.load import load_judge

SECRET = "sk-this-must-not-be-seen"


class StandIn:
    """A local server that answers as an OpenAI-compatible endpoint does."""

    def __init__(self, reply: Callable[[str, int], object]) -> None:
        self.reply = reply
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.url = ""


@contextmanager
def endpoint(reply: Callable[[str, int], object]) -> Iterator[StandIn]:
    """``reply`` gets the question and its number, and gives a text, or an HTTP state."""
    stand_in = StandIn(reply)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stand_in.requests.append(body)
                stand_in.keys.append(self.headers.get("Authorization"))
                number = len(stand_in.requests)
            said = stand_in.reply(body["messages"][-1]["content"], number)
            if isinstance(said, int):
                self.send_response(said)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            text = json.dumps(
                {
                    "choices": [{"message": {"content": said}}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 2},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()


def good(question: str, _: int) -> str:
    """A judge that likes the answer with the word good."""
    first = question.split("Answer A:")[1].split("Answer B:")[0]
    return "A" if "good" in first else "B"


def judge(url: str, **more) -> EndpointJudge:
    return EndpointJudge("tiny", url, wait=0.0, sleep=lambda _: None, **more)


PAIR = (["Say it."] * 2, ["good one", "bad one"], [{}, {}])


def test_every_pair_is_asked_in_both_orders():
    with endpoint(good) as server:
        verdict = judge(server.url)(*PAIR)
        shown = [r["messages"][-1]["content"] for r in server.requests]
    assert verdict.prefer[0, 0, 1] == 1.0
    assert verdict.prefer[0, 1, 0] == 0.0
    assert len(shown) == 2
    assert sum("Answer A:\ngood" in text for text in shown) == 1


def test_a_judge_that_likes_what_comes_first_says_nothing_and_is_found_out():
    with endpoint(lambda question, number: "A") as server:
        asked = judge(server.url)
        verdict = asked(*PAIR)
    assert verdict.prefer[0, 0, 1] == 0.5
    assert asked.disagreement == 1.0


def test_the_same_pair_is_asked_once_whichever_way_round():
    with endpoint(good) as server:
        asked = judge(server.url)
        asked(*PAIR)
        again = asked(["Say it."] * 2, ["bad one", "good one"], [{}, {}])
    assert len(server.requests) == 2
    assert again.prefer[0, 0, 1] == 0.0
    assert asked.account.pairs == 1


@pytest.mark.parametrize("state", [429, 500, 503])
def test_a_busy_server_is_asked_again(state):
    with endpoint(lambda question, number: state if number <= 2 else good(question, 0)) as server:
        asked = judge(server.url, workers=1)
        verdict = asked(*PAIR)
    assert verdict.prefer[0, 0, 1] == 1.0
    assert asked.account.retries == 2


def test_waits_double_and_are_bounded_by_the_tries():
    waits: list[float] = []
    with endpoint(lambda question, number: 503) as server:
        asked = EndpointJudge("tiny", server.url, wait=1.0, tries=4, workers=1, sleep=waits.append)
        with pytest.raises(DataError, match="no readable answer to 2 of 2"):
            asked(*PAIR)
    assert waits == [1.0, 2.0, 4.0] * 2


def test_what_cannot_be_read_is_abstained_on_and_counted_never_made_up():
    prompts = ["Say it."] * 6
    answers = ["good one", "bad one", "good two", "bad two", "odd", "bad three"]

    def reply(question: str, number: int) -> str:
        return "I like both." if "odd" in question else good(question, number)

    with endpoint(reply) as server:
        asked = judge(server.url, tries=2)
        verdict = asked(prompts, answers, [{}] * 6)
    assert verdict.abstained.tolist() == [False, False, False, False, True, True]
    assert verdict.prefer[:2, 0, 1].tolist() == [1.0, 1.0]
    assert bool(verdict.prefer.isfinite().all())
    assert asked.account.failed == 2
    assert asked.account.unreadable == 4


def test_a_refused_key_is_one_sentence_without_the_key(monkeypatch):
    monkeypatch.setenv("POLYALIGN_JUDGE_KEY", SECRET)
    with endpoint(lambda question, number: 401) as server:
        asked = judge(server.url)
        with pytest.raises(OptionError, match="refused") as error:
            asked(*PAIR)
        assert server.keys[0] == f"Bearer {SECRET}"
    assert SECRET not in f"{error.value} {error.value.mend} {vars(asked)} {asked.account}"


def test_tokens_and_cost_are_accounted_for():
    with endpoint(good) as server:
        asked = judge(server.url, prices=(10.0, 30.0))
        asked(*PAIR)
    assert asked.tokens_used == 2 * 102
    assert asked.account.cost == pytest.approx(2 * (100 * 10 + 2 * 30) / 1e6)


def test_equal_answers_are_a_tie_and_not_asked_about():
    with endpoint(good) as server:
        verdict = judge(server.url)(["Say it."] * 2, ["same", "same"], [{}, {}])
    assert verdict.prefer[0, 0, 1] == 0.5
    assert server.requests == []


def test_a_server_that_is_not_there_is_told():
    asked = judge("http://127.0.0.1:9/v1", tries=2)
    with pytest.raises(DataError, match="no readable answer"):
        asked(*PAIR)


def test_an_endpoint_is_named_on_the_command_line():
    found = load_judge("endpoint:org/my-model@http://localhost:1/v1")
    assert isinstance(found, EndpointJudge)
    assert found.model == "org/my-model"
    with pytest.raises(OptionError, match="endpoint:MODEL@URL"):
        load_judge("endpoint:my-model")


@pytest.mark.parametrize(
    ("reply", "said"),
    [("A", 1.0), ("b", None), ("Answer: B", 0.0), ("tie", 0.5), ("", None), ("A and B", None)],
)
def test_replies_are_read_only_where_they_say_one_thing(reply, said):
    assert verdict_in(reply) == said

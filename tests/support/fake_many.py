"""The fake service's stream of many generations: each step brings the next word of every one."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress

from tercet.v1 import generation_pb2
from tercet.v1.types_pb2 import Usage


class FakeMany:
    """One stream, of a fake that takes notes: the most at once, and the requests in their order."""

    def __init__(self, fake, words, refusal):
        """`words`: what becomes of a request, for each of its outputs; `refusal`: its google.rpc.Status, or None."""
        self.fake, self.words, self.refusal = fake, words, refusal
        self.arrived = queue.SimpleQueue()
        self.running = {}  # key -> request, words that are left, position
        self.closed = False

    def read(self, requests):
        """Takes requests in a thread of its own."""

        def take():
            with suppress(Exception):  # of a client that leaves
                for request in requests:
                    self.arrived.put(request)
            self.arrived.put(None)

        threading.Thread(target=take, daemon=True).start()
        return self

    def answer(self, context):
        """The messages."""
        while not (self.closed and not self.running):
            ends = self.start()
            message = self.step()
            message.ends.extend(ends)
            self.finish(message)
            yield message
            time.sleep(self.fake.delay)
            if self.fake.failures.get("midway"):
                failure = self.fake.failures["midway"].pop()
                context.abort(failure.code, failure.message)

    def start(self):
        """Takes what has arrived; the ends of what is refused."""
        ends = []
        while not self.closed and (not (self.running or ends) or not self.arrived.empty()):
            request = self.arrived.get()
            if request is None:
                self.closed = True
                break
            self.fake.started.append((request.key, request.generate))
            if refused := self.refusal(request.generate):
                ends.append(generation_pb2.GenerateManyEnd(key=request.key, error=refused))
                continue
            self.running[request.key] = [request.generate, self.words(request.generate), 0]
            self.fake.most_running = max(self.fake.most_running, len(self.running))
        return ends

    def step(self):
        """One word of every output of every generation."""
        message = generation_pb2.GenerateManyResponse()
        for key, (request, outputs, position) in self.running.items():
            for index, words in enumerate(outputs):
                last = position == len(words) - 1
                if position == 0 or last or request.sampling.logprobs:
                    message.details.add(
                        piece=len(message.keys),
                        finish_reason="FINISH_REASON_LENGTH" if last else None,
                        logprobs=[generation_pb2.TokenLogprob(logprob=-1.5)] if request.sampling.logprobs else [],
                        prompt_token_ids=[8, 9] if request.sampling.echo and position == index == 0 else [],
                        seed=9 if position == index == 0 else 0,
                    )
                message.keys.append(key)
                message.indexes.append(index)
                message.token_ids.append(position)
                message.texts.append(words[position] + ("" if last else " "))
        self.fake.pieces_sent += len(message.keys)
        return message

    def finish(self, message):
        """Moves every generation on, and ends those that have no more words."""
        for key, entry in list(self.running.items()):
            entry[2] += 1
            if entry[2] == len(entry[1][0]):
                tokens = entry[2] * len(entry[1])
                message.ends.add(key=key, model="echo", usage=Usage(prompt_tokens=5, generated_tokens=tokens))
                del self.running[key]

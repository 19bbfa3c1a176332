"""An S3 server on loopback, in a thread, that fails requests when it is told to."""

import contextlib
import itertools
import logging
import random
import socket
import threading
from dataclasses import dataclass, field

SLOW_DOWN, INTERNAL_ERROR, CUT = KINDS = ('SlowDown', 'InternalError', 'cut')

_STATUS = {SLOW_DOWN: '503 Slow Down', INTERNAL_ERROR: '500 Internal Server Error'}


@dataclass
class Failures:
    """Which requests fail, and which have failed so far.

    Attributes:
        probability: That a request fails.
        kinds: How, in turn. What is cut was carried out: its answer ends half-way, or is lost where
            it is a head alone.
        requests: How many came.
        failed: Those that failed: kind, method and path of each.
    """

    probability: float
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    requests: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self):
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self, environ):
        """How a request fails, or None."""
        with self._lock:
            self.requests += 1
            if self._random.random() >= self.probability:
                return None
            kind = self.kinds[len(self.failed) % len(self.kinds)]
            self.failed.append((kind, environ['REQUEST_METHOD'], environ['PATH_INFO']))
            return kind


class ObjectStorage:
    """moto's S3 on a free port, as a context.

    Attributes:
        environment: Variables by which s3fs, boto3 and pyarrow find it, in child processes too.
    """

    def __init__(self):
        from moto.server import MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        # It writes a line for each request.
        logging.getLogger('werkzeug').setLevel(logging.ERROR)
        self._moto = create_backend_app('s3')
        self._failures = Failures(0)
        self._numbers = itertools.count()
        self._server = make_server(
            '127.0.0.1', 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.environment = {
            'AWS_ENDPOINT_URL': f'http://127.0.0.1:{self._server.server_port}',
            'AWS_ACCESS_KEY_ID': 'test',
            'AWS_SECRET_ACCESS_KEY': 'test',
            'AWS_DEFAULT_REGION': 'us-east-1',
            # Neither the network nor the user's files are asked for others.
            'AWS_EC2_METADATA_DISABLED': 'true',
            'AWS_CONFIG_FILE': '/dev/null',
            'AWS_SHARED_CREDENTIALS_FILE': '/dev/null',
            # botocore would hide what fails, and wait about a second for each.
            'AWS_MAX_ATTEMPTS': '1',
        }

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def make_bucket(self):
        """Returns the name of a new bucket."""
        name = f'bucket-{next(self._numbers)}'
        _backend().create_bucket(name, 'us-east-1')
        return name

    def put(self, url, contents):
        """Put files below a URL, without requests; `contents`: their contents by path."""
        bucket, _, folder = url.removeprefix('s3://').partition('/')
        for path, content in contents.items():
            _backend().put_object(bucket, f'{folder}/{path}', content)

    def contents(self, url):
        """Contents by path of all files below a URL, without requests."""
        bucket, _, folder = url.removeprefix('s3://').partition('/')
        objects = _backend().buckets[bucket].keys.items()
        return {
            key.removeprefix(f'{folder}/'): entry.value
            for key, entry in objects
            if key.startswith(f'{folder}/')
        }

    @contextlib.contextmanager
    def failing(self, probability, kinds=KINDS, seed=0):
        """While the context lasts, requests fail; yields the `Failures`."""
        self._failures = Failures(probability, kinds, seed)
        try:
            yield self._failures
        finally:
            self._failures = Failures(0)

    def _answer(self, environ, start_response):
        kind = self._failures.next(environ)
        if kind is None:
            return self._moto(environ, start_response)
        if kind == CUT:
            return self._cut(environ, start_response)
        body = f'<Error><Code>{kind}</Code><Message>made to fail</Message></Error>'.encode()
        length = [('Content-Type', 'application/xml'), ('Content-Length', str(len(body)))]
        start_response(_STATUS[kind], length)
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [body]

    def _cut(self, environ, start_response):
        heads = []
        body = b''.join(self._moto(environ, lambda *head: heads.append(head[:2])))
        if body:
            start_response(*heads[-1])
            yield body[: len(body) // 2]
        environ['werkzeug.socket'].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError


def _backend():
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    return s3_backends[DEFAULT_ACCOUNT_ID]['aws']

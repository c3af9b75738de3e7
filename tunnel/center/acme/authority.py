"""What is said to a certificate authority, by the library ``acme``.

All here blocks, and is for a worker thread; each call ends at the time that it is given
or at most one read later. Importing this imports the library.
"""

from __future__ import annotations

import hashlib
import io
import ssl
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import josepy.errors
import requests
import urllib3
from acme import challenges, client, errors, messages
from josepy.jwa import ES256
from josepy.jwk import JWK
from requests.adapters import HTTPAdapter

import tunnel
from tunnel.center.acme.failures import FailedError, Proof, explained
from tunnel.proto.proofs import to_base64url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NETWORK_S: Final = 20.0
"""For each read of an answer: authorities answer within a second."""
MAX_ANSWER_BYTES: Final = 1_048_576
"""Of one answer: a chain with four certificates has 8 KB."""
NONCE_TRIES: Final = 5
"""An authority may refuse a nonce that it gave (RFC 8555 §6.5): then with the next."""
_PIECE_BYTES: Final = 16_384
_DEEPEST: Final = 8
"""Errors around the one that began it, at most."""
_OVERLOADED: Final = 503
"""Its Retry-After is meant for all that is asked. That of 429 may be about one name,
as where it had too many certificates: others must not wait a week for it."""


class Authority:
    """One order at an authority.

    Args:
        directory: its URL.
        ca: the authorities that are trusted about its own certificate, a file; None for
            the system's.
        within_s: for all calls together.
    """

    def __init__(
        self,
        directory: str,
        ca: Path | None,
        within_s: float,
        network_s: float = NETWORK_S,
    ) -> None:
        self._directory = directory
        self._wire = _Wire(ca, time.monotonic() + within_s, network_s)
        self._until = datetime.now() + timedelta(seconds=within_s)
        self._client: client.ClientV2
        self._order: messages.OrderResource
        self._waiting: list[messages.ChallengeBody] = []

    def begin(
        self, mail: str, account_pem: str, request_pem: bytes, kinds: Sequence[str]
    ) -> list[Proof]:
        """Begin an order; return what is to be shown before ``finish``.

        Args:
            mail: of who answers for the account.
            account_pem: the account's key.
            request_pem: for the certificate.
            kinds: of challenges, the first that is offered is taken.

        Raises:
            FailedError: it refuses, or cannot be reached.
        """
        with self._failing():
            key = JWK.load(account_pem.encode())
            self._client = self._signed_in(key, mail)
            self._order = self._client.new_order(request_pem)
            return [
                proof
                for part in self._order.authorizations
                if part.body.status == messages.STATUS_PENDING
                for proof in [self._proof(part.body, key, kinds)]
            ]

    def finish(self) -> str:
        """Have it look at the proofs; return the certificate with its chain, PEM.

        Raises:
            FailedError: it saw something else, refuses, or cannot be reached.
        """
        with self._failing():
            for challenge in self._waiting:
                # What is sent is {}, whatever the kind (RFC 8555 §7.5.1).
                said = challenges.HTTP01Response(key_authorization="")
                self._client.answer_challenge(challenge, said)
            order = self._client.poll_authorizations(self._order, self._until)
            order = self._client.finalize_order(order, self._until)
            return str(order.fullchain_pem)

    def close(self) -> None:
        """Close its connections."""
        self._wire.close()

    def _signed_in(self, key: JWK, mail: str) -> client.ClientV2:
        net = _Network(key, alg=ES256, user_agent=f"tunnel/{tunnel.__version__}")
        net.session.close()
        net.session.mount("https://", self._wire)
        net.session.mount("http://", self._wire)
        directory = client.ClientV2.get_directory(self._directory, net)
        session = client.ClientV2(directory, net)
        if session.external_account_required():
            why = "the authority wants an account that was made elsewhere"
            raise FailedError(why, "another --acme-directory", of_authority=True)
        account = messages.NewRegistration.from_data(
            email=mail, terms_of_service_agreed=True
        )
        try:
            session.new_account(account)
        except errors.ConflictError as known:
            have = messages.RegistrationResource(
                uri=known.location, body=messages.Registration()
            )
            net.account = have
        return session

    def _proof(
        self, part: messages.Authorization, key: JWK, kinds: Sequence[str]
    ) -> Proof:
        offered = {str(one.chall.to_json()["type"]): one for one in part.challenges}
        kind = next((one for one in kinds if one in offered), None)
        name = str(part.identifier.value)
        if kind is None:
            why = f"it takes only {', '.join(sorted(offered))} of {name}"
            raise FailedError(why, "--http 80, or --acme-hook PROGRAM for dns-01")
        challenge = offered[kind]
        self._waiting.append(challenge)
        token = str(challenge.chall.to_json()["token"])
        authorization = f"{token}.{to_base64url(key.thumbprint())}"
        digest = to_base64url(hashlib.sha256(authorization.encode()).digest())
        return Proof(kind, name, token, authorization, digest)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn whatever the library, the network and the answers bring into one."""
        try:
            yield
        except messages.Error as error:
            raise self._refused(error) from error
        except errors.ValidationError as error:
            raise self._refused(_first_error(error)) from error
        except errors.IssuanceError as error:
            raise self._refused(error.error) from error
        except errors.TimeoutError as error:
            why = "it has not decided within the time"
            raise FailedError(why, "it is asked again", of_authority=True) from error
        except (OSError, errors.Error, josepy.errors.Error, ValueError, LookupError,
                TypeError, AttributeError, RecursionError) as error:  # fmt: skip
            raise self._gone_wrong(error) from error

    def _refused(self, error: messages.Error | None) -> FailedError:
        code = (error.code if error else None) or ""
        detail = (error.detail or error.title or "") if error else ""
        failure = explained(code, detail)
        failure.after_s = self._wire.retry_after_s
        failure.of_authority |= self._wire.must_wait
        return failure

    def _gone_wrong(self, error: Exception) -> FailedError:
        # Before its fifth version the library gave errors of the network other names.
        within = error.__context__
        network = within if isinstance(within, requests.RequestException) else error
        if isinstance(network, requests.exceptions.SSLError):
            why = f"its own certificate is not trusted: {_inmost(network)}"
            fix = "--acme-ca FILE with the authorities of your own one"
        elif isinstance(network, requests.RequestException):
            why = f"it cannot be reached: {_inmost(network)}"
            fix = f"this machine has to reach {self._directory}"
        elif isinstance(network, OSError):
            why = f"its authorities cannot be read: {_inmost(network)}"
            fix = "--acme-ca FILE that is there"
        else:
            why = f"it answers what ACME does not know: {type(error).__name__}: {error}"
            fix = f"{self._directory} has to be the directory of an ACME authority"
        after_s = self._wire.retry_after_s
        return FailedError(why[:500], fix, of_authority=True, after_s=after_s)


def _first_error(error: errors.ValidationError) -> messages.Error | None:
    for part in error.failed_authzrs:
        for challenge in part.body.challenges:
            if challenge.error is not None:
                return challenge.error
    return None


def _inmost(error: BaseException) -> str:
    """Return the words of what began it; urllib3 wraps and repeats them."""
    seen = 0
    while seen < _DEEPEST:
        inner = getattr(error, "reason", None) or error.__context__
        if not isinstance(inner, BaseException):
            inner = next((a for a in error.args if isinstance(a, BaseException)), None)
        if inner is None:
            break
        error, seen = inner, seen + 1
    words = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {words}"[:300]


class _Network(client.ClientNetwork):
    """Asks again where a nonce is refused, more often than once."""

    def post(self, *args: object, **kwargs: object) -> requests.Response:
        for _ in range(NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class _Wire(HTTPAdapter):
    """Bounds each answer in time and bytes, and notes Retry-After."""

    def __init__(self, ca: Path | None, until: float, network_s: float) -> None:
        super().__init__()
        paths = ssl.get_default_verify_paths()
        self._trusted = str(ca) if ca else paths.cafile or paths.capath
        self._until = until
        self._network_s = network_s
        self.retry_after_s = 0.0
        self.must_wait = False

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: object = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        del stream, timeout
        request.headers["Accept-Encoding"] = "identity"
        answer = super().send(
            request,
            stream=True,
            timeout=self._left_s(),
            verify=self._trusted or verify,
            cert=cert,
            proxies=proxies,
        )
        self.must_wait = answer.status_code == _OVERLOADED
        self.retry_after_s = _seconds(answer) if not answer.ok else 0.0
        body = bytearray()
        try:
            # What is there: ``iter_content`` waits for whole pieces, however long.
            while piece := answer.raw.read1(_PIECE_BYTES, decode_content=False):
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    what = f"more than {MAX_ANSWER_BYTES} bytes"
                    raise requests.exceptions.ContentDecodingError(what)
                self._left_s()
        except urllib3.exceptions.HTTPError as error:  # it broke off
            raise requests.exceptions.ConnectionError(error) from error
        finally:
            answer.close()
        whole = requests.Response()
        whole.status_code, whole.reason = answer.status_code, answer.reason
        whole.headers, whole.url = answer.headers, answer.url
        whole.request, whole.connection = request, self
        whole.raw = io.BytesIO(bytes(body))
        return whole

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise requests.exceptions.Timeout("the order took too long")
        return min(left_s, self._network_s)


def _seconds(answer: requests.Response) -> float:
    said = client.ClientV2.retry_after(answer, 0)
    return max(0.0, (said - datetime.now()).total_seconds())

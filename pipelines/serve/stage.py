"""`manta serve`: start the model on Ray Serve, say how to reach it, and wait for Ctrl-C."""

import contextlib
import io
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from cluster.placement import Node, Share, room, share
from llm.models.load import load_config
from pipelines.check_model import check_decoder
from pipelines.invocation import invocation
from pipelines.model_folder import CONFIG
from pipelines.progress import console
from pipelines.serve.config import API_KEY_VARIABLE, ServeConfig, ServedModel


def resolve_inputs(config: ServeConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The model, after checking everything that can be checked before Ray starts."""
    model = find_model(config, store)
    if not os.environ.get(API_KEY_VARIABLE) and not _is_loopback(config.host):
        raise UserError(
            f"--host {config.host} is reachable from other machines: set {API_KEY_VARIABLE} to a secret key, "
            "or listen on 127.0.0.1"
        )
    _check_port(config.host, config.port)
    return {"model": model}


def find_model(options: ServedModel, store: ArtifactStore) -> Artifact:
    """The model; raises UserError if it cannot be served like this."""
    model = store.resolve("models", options.model)
    shape, head = load_config(model.fetch(CONFIG))
    if head != "lm":
        raise UserError(f"{model.ref} is a reward model; serve a language model, such as the one it scored")
    check_decoder("model", model)
    if options.max_seq_len and options.max_seq_len > shape.max_seq_len:
        raise UserError(
            f"--max-seq-len {options.max_seq_len} is beyond the {shape.max_seq_len} tokens of {model.ref}"
        )
    return model


def run(config: ServeConfig, cluster: Cluster) -> None:
    """Serve until Ctrl-C. This stage makes no artifact."""
    model = resolve_inputs(config, ArtifactStore(config.root))["model"]
    with serving(config, model, cluster):
        _print_greeting(config, model)
        _wait_for_signal()
        console.print("stopping …")


@contextlib.contextmanager
def serving(config: ServeConfig, model: Artifact, cluster: Cluster) -> Iterator[str]:
    """The URL of a running server, for the length of the block."""
    from ray import serve

    from pipelines.serve.deployment import application

    cluster.connect()
    if serve.status().proxies:
        raise UserError(
            "Ray Serve runs on this cluster already, with a port of its own: stop it with `serve shutdown`, "
            "or give --address another cluster"
        )
    share_of_replica = replica_share(config, cluster.nodes)
    serve.start(http_options={"host": config.host, "port": config.port})
    try:
        serve.run(application(config, model, share_of_replica), name="manta", route_prefix="/")
        yield _url(config)
    finally:
        # While it ends Ray prints, from another thread, that the controller it was asked to end has ended.
        with contextlib.redirect_stdout(io.StringIO()):
            serve.shutdown()


def replica_share(options: ServedModel, nodes: Sequence[Node]) -> Share:
    """What each replica reserves, its CPU threads as CPUs: what was asked for, else an equal share.

    Raises:
        UserError: the nodes have no room for all replicas, for which Serve would wait for ever.
    """
    cpus, replicas = int(sum(node.cpus for node in nodes)), options.replicas
    equal = share(nodes, replicas, use_gpus=options.gpus != 0)
    threads = options.threads or max(1, min(int(equal.cpus), (cpus - 1) // replicas))
    wanted = Share(threads, equal.gpus if options.gpus is None else options.gpus)
    fitting = room(nodes, wanted)
    if fitting < replicas:
        each = f"{threads} CPUs" + (" and a GPU" if wanted.gpus else "")
        largest = int(max(node.cpus for node in nodes))
        raise UserError(
            f"--replicas {replicas} of {each} each: the cluster takes {fitting} (it has {cpus} CPUs, at most "
            f"{largest} on one node, and {sum(node.gpus for node in nodes)} GPUs); "
            f"lower --threads{', --gpus' if wanted.gpus else ''} or --replicas"
        )
    return wanted


def _url(config: ServeConfig) -> str:
    """Where a client on this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def _print_greeting(config: ServeConfig, model: Artifact) -> None:
    url = _url(config)
    secured = bool(os.environ.get(API_KEY_VARIABLE))
    header = f" -H 'Authorization: Bearer '\"${API_KEY_VARIABLE}\"" if secured else ""
    console.print(f"serving {model.ref} at {url}/v1  (Ctrl-C stops)", markup=False)
    console.print(
        f"  curl {url}/v1/chat/completions{header} -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "{model.name}", "messages": '
        '[{"role": "user", "content": "Hello"}]}\'',
        markup=False,
    )
    console.print(f"  {invocation()} chat --url {url}", markup=False)


def _wait_for_signal() -> None:
    """Block until Ctrl-C or a termination signal, which then is an orderly end."""
    stopped = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not stopped.wait(0.5):
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
            ) from error

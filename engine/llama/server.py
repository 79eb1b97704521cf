"""Serves one GGUF model with llama.cpp's HTTP server on a Unix socket.

Started by package llama with its parameters as JSON in the first argument. It
ends when its standard input does, which its parent holds open, and at once on
SIGTERM.
"""

import json
import os
import resource
import signal
import sys
import threading

args = json.loads(sys.argv[1])

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold prompts
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent to handle
os.umask(0o007 if args["group_socket"] else 0o077)  # the socket is for this user and, at most, its group

sys.path.insert(0, args["python_path"])
import xllamacpp  # noqa: E402

p = xllamacpp.CommonParams()
p.model.path = args["model_path"]
p.model_alias = {args["model"]}
p.hostnames = [args["socket_at_first"]]
p.n_parallel = args["slots"]
p.n_ctx = args["slots"] * args["context_tokens"]
p.cpuparams.n_threads = args["threads"]
p.cpuparams_batch.n_threads = args["threads"]
# A request that waits for a slot keeps one of these: with the default, 24
# waiting requests leave none to answer /health.
p.n_threads_http = args["slots"] + 128
p.endpoint_metrics = True
p.endpoint_slots = True
p.ui = False
p.use_jinja = True  # templates, tools and JSON mode
# No memory of past prompts: neither in host memory, where the default keeps
# 8 GiB of them, nor, as llama.cpp knows no salt, as a prefix to be reused for
# somebody else's request. The latter is a default that a request's cache_prompt
# overrules: the guard sets it, and takes care whose prompt the slot holds.
p.cache_ram_mib = 0
p.cache_prompt = False
# Without this path llama.cpp does not erase slots either, which a wash asks for.
# What lies under it cannot be written to: no request's state gets onto a disk.
p.slot_save_path = os.devnull + "/"
p.verbosity = 1  # errors

server = xllamacpp.Server(p)  # returns once the model is loaded

# From the first request on llama.cpp's messages can quote it: JSON that does
# not parse, a grammar that does not. So nobody can connect before this point,
# and nothing is written after it.
null = os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 1)
os.dup2(null, 2)
os.rename(args["socket_at_first"], args["socket"])


def follow_parent():
    while os.read(0, 64):
        pass
    try:
        os.unlink(args["socket"])
    finally:
        os._exit(0)


threading.Thread(target=follow_parent, daemon=True).start()
while True:
    signal.pause()

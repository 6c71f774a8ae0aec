/* command: the subcommands of `lepton`, one file each. Exit codes: 0 done, 1 the work failed (message on
 * standard error), 2 wrong usage, 3 the coordinator or a group could not be reached or was lost, 130 ended by
 * Ctrl-C. */
#ifndef LEPTON_TOOLS_COMMAND_H
#define LEPTON_TOOLS_COMMAND_H

#include "common/config.h"

#define EXIT_OK          0
#define EXIT_FAILED      1
#define EXIT_USAGE       2
#define EXIT_UNREACHABLE 3
#define EXIT_INTERRUPTED 130

/* The one list of subcommands, in the order in which a newcomer meets them; tools/NAME.c defines
 * command_NAME (drain.c undrain as well). Prototypes, dispatch and `lepton --help` come from it. */
#define LEPTON_COMMANDS(X)                                                               \
    X(run, "start everything on this machine and generate: the place to begin")          \
    X(demo, "show it all in a minute: two groups of two stages tell four stories")       \
    X(chat, "talk with a model: history, system prompt, its own chat template")          \
    X(generate, "send a prompt to a running coordinator and print the answer")           \
    X(gateway, "serve HTTP clients, as OpenAI's API does, over a running coordinator")   \
    X(status, "show the groups, requests and queue of a running coordinator")            \
    X(group, "start one worker group on its nodes and keep it alive")                    \
    X(models, "keep models under names, with hashes: list, add, verify, rm")             \
    X(inspect, "show what a model file holds: architecture, sizes, vocabulary, tensors") \
    X(convert, "turn a Hugging Face directory into a GGUF file, or back")                \
    X(tokenize, "turn text into the token ids of a model")                               \
    X(template, "show the text that a chat model is sent for a conversation")            \
    X(perplexity, "measure how well a model predicts a text")                            \
    X(logits, "show what a model computes for given token ids, as numbers")              \
    X(quantize, "write a model again with other element types")                          \
    X(synth, "write a model of random weights, for benchmarks")                          \
    X(bench, "measure the kernels beside the limits of this machine")                    \
    X(sim, "simulate a cluster of any size with the real scheduler")                     \
    X(tune, "change what a running coordinator tunes by itself, or hand it back")        \
    X(drain, "take groups out of service: no new work, their streams move to others")    \
    X(undrain, "put groups back into service")                                           \
    X(backup, "copy what a coordinator keeps on its disk, while it runs")                \
    X(restore, "put such a copy back in its place")                                      \
    X(audit, "show who was refused, cut or changed something, and check the chain")      \
    X(load, "put a running cluster under load: generated requests, or a trace")          \
    X(devices, "list the devices that kernels can run on")                               \
    X(keygen, "make the CURVE key pair of a coordinator, worker or client")              \
    X(version, "show the versions of Lepton, its protocol and its libraries")

/* Each takes its own argv (argv[0] = the subcommand's name) and returns an exit code. */
#define COMMAND_PROTOTYPE(name, about) int command_##name(int argc, char **argv);
LEPTON_COMMANDS(COMMAND_PROTOTYPE)
#undef COMMAND_PROTOTYPE

/* For commands that take a MODEL: where its name is looked up when it is no path. */
#define MODELS_OPTION(type)                                                                        \
    {                                                                                              \
        .name = "models", .kind = CONFIG_STRING, .offset = offsetof(type, models), .value = "DIR", \
        .help = "The directory of registered models (default: see `lepton models --help`)."        \
    }

#endif

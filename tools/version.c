/* lepton version: what a bug report needs to name. The libraries are those that run, not those of the build.
 */
#include "tools/command.h"

#include <jansson.h>
#include <libconfig.h>
#include <msgpack.h>
#include <sodium.h>
#include <stdio.h>
#include <zmq.h>

#include "common/wire.h"

struct version_settings {
    bool json;
};

static const struct config_option options[] = {
    {.name = "json",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct version_settings, json),
     .help = "Prints one JSON object."},
};

static const struct config_table table = {
    .program = "lepton version",
    .about = "Shows the versions of Lepton, of its wire protocol and of the libraries it runs with.",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct version_settings),
};

/* libconfig has no version at run time. */
#define TEXT(x)        #x
#define DOTTED(a, b)   TEXT(a) "." TEXT(b)
#define LIBCONFIG_TEXT DOTTED(LIBCONFIG_VER_MAJOR, LIBCONFIG_VER_MINOR)

int command_version(int argc, char **argv)
{
    struct version_settings settings;
    int major, minor, patch;
    char zmq[40];
    config_main(&table, &settings, argc, argv, NULL, 0);
    zmq_version(&major, &minor, &patch);
    snprintf(zmq, sizeof(zmq), "%d.%d.%d", major, minor, patch);
    const char *const rows[][2] = {
        {"zeromq", zmq},
        {"msgpack", msgpack_version()},
        {"libsodium", sodium_version_string()},
        {"jansson", jansson_version_str()},
        {"libconfig", LIBCONFIG_TEXT},
    };
    if (settings.json) {
        json_t *all = json_pack("{s:s, s:i, s:b}", "lepton", LEPTON_VERSION, "protocol", WIRE_VERSION,
                                "curve", zmq_has("curve"));
        for (size_t i = 0; i < ARRAY_LEN(rows); i++)
            json_object_set_new(all, rows[i][0], json_string(rows[i][1]));
        json_dumpf(all, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(all);
    } else {
        printf("lepton     %s\nprotocol   %d\n", LEPTON_VERSION, WIRE_VERSION);
        for (size_t i = 0; i < ARRAY_LEN(rows); i++)
            printf("%-10s %s\n", rows[i][0], rows[i][1]);
        printf("curve      %s\n", zmq_has("curve") ? "yes" : "no");
    }
    config_release(&table, &settings);
    return EXIT_OK;
}

/* lepton keygen: makes one CURVE key pair. Formats, names and file modes are the business of common/curve. */
#include "tools/command.h"

#include <stdio.h>

#include "common/curve.h"

struct keygen_settings {
    char *role;
};

static const struct config_option options[] = {
    {.name = "role",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct keygen_settings, role),
     .choices = "coordinator|worker|client",
     .value = "ROLE",
     .help = "What the owner of the key may be; always needed."},
};

static const struct config_table table = {
    .program = "lepton keygen",
    .arguments = "DIR NAME",
    .about =
        "Makes a key pair in DIR: NAME.key, which stays with its owner, and NAME.pub, which others get. NAME "
        "is the identity that the coordinator sees behind the key. Files that are there are never "
        "overwritten.",
    .after =
        "A coordinator trusts the .pub files in its authorized directory; adding one lets its owner in,\n"
        "removing one shuts it out. Workers and clients need the coordinator's .pub file.\n",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct keygen_settings),
};

int command_keygen(int argc, char **argv)
{
    struct keygen_settings settings;
    const char *arguments[2];
    struct curve_key key;
    struct err err;
    enum curve_role role;
    int code = EXIT_FAILED;
    config_main(&table, &settings, argc, argv, arguments, 2);
    const char *directory = arguments[0], *name = arguments[1];
    if (!settings.role || !curve_role_from_name(settings.role, &role)) {
        fprintf(stderr, "lepton keygen: --role: expected one of coordinator, worker, client\n");
        code = EXIT_USAGE;
        goto out;
    }
    if (curve_generate(&key, directory, name, role, &err) != 0) {
        fprintf(stderr, "lepton keygen: %s\n", err.message);
        goto out;
    }
    curve_wipe(&key);
    printf("%s/%s.key  secret and public key, mode 0600: keep it where the %s runs\n", directory, name,
           settings.role);
    if (role == CURVE_COORDINATOR)
        printf("%s/%s.pub  public key: give it to every worker and client\n", directory, name);
    else
        printf("%s/%s.pub  public key: put it into the coordinator's authorized directory\n", directory,
               name);
    code = EXIT_OK;
out:
    config_release(&table, &settings);
    return code;
}

#include "kernels/cpu/nodes.h"

#include <sys/stat.h>
#include <unistd.h>

#include "tests/test.h"

static char root[] = "/tmp/lepton-nodes-XXXXXX";

static void write_node(const char *name, const char *list)
{
    char *directory = xasprintf("%s/%s", root, name), *path = xasprintf("%s/cpulist", directory);
    CHECK(mkdir(directory, 0755) == 0);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(list, f) >= 0 && fclose(f) == 0);
    free(directory);
    free(path);
}

static struct node_set nodes_for(const int *cpu, int count)
{
    struct node_set set;
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    for (int i = 0; i < count; i++)
        CPU_SET(cpu[i], &allowed);
    nodes_of_processors(&set, root, &allowed);
    return set;
}

static void test_nodes(void)
{
    write_node("node0", "0-3,8-11\n");
    write_node("node1", "4-7,12-15\n");
    write_node("node64", "16\n");
    write_node("node2", "\n"); /* memory without processors */
    write_node("nodes", "0-63\n");
    write_node("node9", "x-3\n");
    struct node_set set = nodes_for((const int[]){2, 9}, 2);
    CHECK(set.count == 1 && set.bits[0] == 1);
    set = nodes_for((const int[]){11, 12}, 2);
    CHECK(set.count == 2 && set.bits[0] == 3);
    set = nodes_for((const int[]){4, 16}, 2);
    CHECK(set.count == 2 && set.bits[0] == 2 && set.bits[1] == 1);
    set = nodes_for((const int[]){63}, 1);
    CHECK(set.count == 0);
}

static void test_absent(void)
{
    struct node_set set;
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    CPU_SET(0, &allowed);
    nodes_of_processors(&set, "/no/such/directory", &allowed);
    CHECK(set.count == 0);
}

/* Interleaved memory works as any other, also where the system refuses. */
static void test_interleave(void)
{
    struct node_set two = {.bits = {3}, .count = 2}, here;
    char *memory = aligned_alloc(4096, 1 << 20);
    nodes_interleave(&two, memory, 1 << 20);
    memset(memory, 7, 1 << 20);
    CHECK(memory[0] == 7 && memory[(1 << 20) - 1] == 7);
    nodes_of_process(&here);
    nodes_interleave(&here, memory, 1 << 20);
    CHECK(here.count >= 0);
    free(memory);
}

int main(void)
{
    if (!mkdtemp(root))
        return 1;
    TEST(test_nodes, "the nodes of the allowed processors");
    TEST(test_absent, "a system without nodes has none");
    TEST(test_interleave, "interleaved memory can be used");
    char *command = xasprintf("rm -rf %s", root);
    int code = system(command);
    free(command);
    return test_result() | (code != 0);
}

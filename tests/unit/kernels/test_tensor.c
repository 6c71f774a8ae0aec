#include "kernels/tensor.h"
#include "tests/test.h"

static void test_bytes_follow_the_type(void)
{
    char data[1];
    struct tensor t = tensor_3d(NULL, DTYPE_F16, data, 3, 5, 7);
    CHECK_INT(tensor_elements(&t), 105);
    CHECK_INT(tensor_bytes(&t), 210);
    t = tensor_2d(NULL, DTYPE_Q8_0, data, 3, 64);
    CHECK_INT(tensor_bytes(&t), 3 * 68);
    t = tensor_1d(NULL, DTYPE_I32, data, 0);
    CHECK_INT(tensor_bytes(&t), 0);
}

static void test_rows_are_a_view(void)
{
    char data[1024];
    struct tensor t = tensor_2d(NULL, DTYPE_Q8_0, data, 10, 32);
    struct tensor v = tensor_rows(&t, 4, 3);
    CHECK((char *)v.data - data == 4 * 34);
    CHECK_INT(v.dim[0], 3);
    CHECK_INT(v.dim[1], 32);
    v = tensor_rows(&t, 10, 0);
    CHECK_INT(tensor_elements(&v), 0);
    struct tensor absent = tensor_4d(NULL, DTYPE_F32, NULL, 2, 3, 4, 5);
    v = tensor_rows(&absent, 1, 1);
    CHECK(v.data == NULL);
}

int main(void)
{
    TEST(test_bytes_follow_the_type, "the bytes of a tensor follow its type");
    TEST(test_rows_are_a_view, "rows of a tensor are a view of the same memory");
    return test_result();
}

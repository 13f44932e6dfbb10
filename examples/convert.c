/* The C interface: says what an adapter is, converts it, proves that nothing changed, and reads a factor as numbers.
 *
 *   example_convert_c ADAPTER OUT
 */
#include <peft/c.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(peft_error *error) {
  fprintf(stderr, "%s\n", peft_error_message(error));
  peft_error_free(error);
  return EXIT_FAILURE;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s ADAPTER OUT\n", argv[0]);
    return EXIT_FAILURE;
  }
  peft_error *error = NULL;

  peft_inspection *inspection = NULL;
  if (peft_inspect(argv[1], NULL, &inspection, &error) != 0) return failed(error);
  printf("%s: %s\n", argv[1], peft_inspection_layout(inspection));
  for (size_t i = 0; i < peft_inspection_num_consumers(inspection); ++i) {
    printf("  %s: %s\n", peft_inspection_consumer_name(inspection, i), peft_inspection_consumer_verdict(inspection, i));
  }
  peft_inspection_free(inspection);

  peft_convert_options options = {.to = "peft-fused", .output = {.overwrite = 1}};
  peft_result *result = NULL;
  if (peft_convert(argv[1], argv[2], &options, &result, &error) != 0) return failed(error);
  printf("converted: %s\n", peft_result_exactness(result));
  for (size_t i = 0; i < peft_result_num_warnings(result); ++i) printf("  %s\n", peft_result_warning(result, i));
  peft_result_free(result);

  peft_verification *verification = NULL;
  if (peft_verify(argv[1], argv[2], NULL, &verification, &error) != 0) return failed(error);
  const int same = peft_verification_same(verification);
  printf("%s\n", same ? "the same function" : "another function");
  peft_verification_free(verification);

  peft_adapter *adapter = NULL;
  if (peft_adapter_open(argv[1], NULL, &adapter, &error) != 0) return failed(error);
  peft_factor factor;
  if (peft_adapter_factor(adapter, 0, &factor, &error) != 0) return failed(error);
  const size_t size = (size_t)(factor.rank * factor.in);
  float *values = malloc(size * sizeof *values);
  if (values == NULL || peft_adapter_read(adapter, 0, PEFT_LORA_A, values, size, &error) != 0) return failed(error);
  printf("%s: lora_A[0][0] = %g of %zu\n", factor.module, (double)values[0], size);
  free(values);
  peft_adapter_free(adapter);
  return same ? EXIT_SUCCESS : EXIT_FAILURE;
}

# peft-torch: the same command line as peft, linked with libtorch.
file(GLOB_RECURSE torch_cli_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/torch_cli/*.cpp)
list(FILTER torch_cli_sources EXCLUDE REGEX "_test\\.cpp$")
# Objects, because the command line calls back into them.
add_library(peft_torch_parts OBJECT ${torch_cli_sources})
target_include_directories(peft_torch_parts PUBLIC src)
target_link_libraries(peft_torch_parts PUBLIC peft_nn peft_cli_parts peft_tokenizer)
peft_precompile(peft_torch_parts REUSE_FROM peft_nn)

add_executable(peft_torch src/cli/main.cpp)
set_target_properties(peft_torch PROPERTIES OUTPUT_NAME peft-torch)
target_link_libraries(peft_torch PRIVATE peft_torch_parts)

if(PEFT_BUILD_TESTS)
  file(GLOB_RECURSE torch_cli_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/torch_cli/*_test.cpp)
  add_executable(test_torch_cli ${torch_cli_tests})
  target_include_directories(test_torch_cli PRIVATE tests)
  target_compile_definitions(test_torch_cli PRIVATE PEFT_PROGRAM="$<TARGET_FILE:peft_cli>")
  target_link_libraries(test_torch_cli PRIVATE peft_torch_parts peft_test_support peft_test_flags GTest::gmock)
  add_dependencies(test_torch_cli peft_cli peft_torch)
  peft_discover_tests(test_torch_cli)
  # Names are looked up in the order of these lines (cmake/torch.cmake says why it matters).
  add_test(NAME libstdcxx_comes_before_torch COMMAND sh -c
    "readelf -d $<TARGET_FILE:peft_torch> | grep -o -m1 'NEEDED.*lib\\(torch\\|stdc++\\).*' | grep stdc++")
endif()

# peft-torch: the same command line as peft, linked with libtorch.
file(GLOB torch_cli_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/torch_cli/*.cpp)
list(FILTER torch_cli_sources EXCLUDE REGEX "_test\\.cpp$")
add_executable(peft_torch src/cli/main.cpp ${torch_cli_sources})
set_target_properties(peft_torch PROPERTIES OUTPUT_NAME peft-torch)
target_include_directories(peft_torch PRIVATE src)
target_link_libraries(peft_torch PRIVATE peft_nn peft_cli_parts peft_tokenizer)

# Text to token ids, for the runtime's command line: no libtorch in it. The helper script is embedded, so that nothing
# has to be found at run time but a Python.
set(helper_py ${CMAKE_CURRENT_SOURCE_DIR}/src/tokenizer/tokenizer_helper.py)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${helper_py})
file(READ ${helper_py} helper_text)
set(helper_h ${CMAKE_CURRENT_BINARY_DIR}/generated/tokenizer/tokenizer_helper.h)
file(CONFIGURE OUTPUT ${helper_h} @ONLY CONTENT
"namespace {\nconstexpr const char* kHelperScript = R\"python(@helper_text@)python\";\nconstexpr const char* kBuildPython = \"@PEFT_PYTHON@\";\n}\n")

add_library(peft_tokenizer STATIC src/tokenizer/tokenizer.cpp src/tokenizer/text_rows.cpp)
target_include_directories(peft_tokenizer PUBLIC include src PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/generated)
target_link_libraries(peft_tokenizer PUBLIC peft PRIVATE peft_build_flags peft_dependencies)

if(PEFT_BUILD_TESTS)
  target_link_libraries(peft_test_support PUBLIC peft_tokenizer)
  target_include_directories(peft_test_support PUBLIC src)
  # A build without the runtime may be on a machine that has no such Python.
  set(python ${PEFT_PYTHON})
  if(NOT python)
    set(python python3)
  endif()
  execute_process(COMMAND ${python} -c "import tokenizers" RESULT_VARIABLE no_tokenizers OUTPUT_QUIET ERROR_QUIET)
  if(NOT no_tokenizers EQUAL 0)
    message(STATUS "no Python with the package tokenizers: text is not tested")
    return()
  endif()
  target_compile_definitions(golden_test PRIVATE PEFT_HAVE_TOKENIZERS)
  add_executable(test_tokenizer src/tokenizer/tokenizer_test.cpp src/tokenizer/text_rows_test.cpp)
  target_include_directories(test_tokenizer PRIVATE src tests)
  target_link_libraries(test_tokenizer PRIVATE peft_tokenizer peft_test_support peft_test_flags GTest::gmock)
  peft_discover_tests(test_tokenizer)
endif()

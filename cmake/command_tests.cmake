# Tests of the command line, of what is generated from it, of the source tree, and of an installed peft.
find_package(Python3 REQUIRED COMPONENTS Interpreter)

file(GLOB_RECURSE cli_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/cli/*_test.cpp)
add_executable(test_cli ${cli_tests})
target_include_directories(test_cli PRIVATE src tests)
target_link_libraries(test_cli PRIVATE peft_without_torch peft_test_flags GTest::gmock)
peft_discover_tests(test_cli)

add_test(NAME peft_starts_without_highway COMMAND sh -c "! ldd $<TARGET_FILE:peft_cli> | grep libhwy")
# These run the program itself.
foreach(program command_test wild_test)
  if(TARGET ${program})
    add_dependencies(${program} peft_cli)
    target_compile_definitions(${program} PRIVATE PEFT_PROGRAM="$<TARGET_FILE:peft_cli>")
    target_link_libraries(${program} PRIVATE GTest::gmock)
  endif()
endforeach()

file(GLOB engine_pages RELATIVE ${CMAKE_CURRENT_SOURCE_DIR}/docs CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/docs/engines/*.md)
list(TRANSFORM engine_pages REPLACE "\\.md$" "")
foreach(page errors layouts families config_fields engines ${engine_pages})
  add_test(NAME docs_${page}_is_fresh COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:peft_cli> -DPAGE=${page}
    -DFILE=${CMAKE_CURRENT_SOURCE_DIR}/docs/${page}.md -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_page.cmake)
endforeach()

add_test(NAME docs_benchmarks_is_fresh COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/bench/report.py --check)
file(STRINGS ${CMAKE_CURRENT_SOURCE_DIR}/src/stages.txt all_stages)
list(JOIN all_stages "," all_stages)
add_test(NAME structure COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tools/check_structure.py --stages ${all_stages} ${CMAKE_CURRENT_SOURCE_DIR})
add_test(NAME structure_self_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tools/check_structure.py --self-test)

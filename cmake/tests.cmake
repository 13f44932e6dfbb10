# One test program per stage (src/<stage>/*_test.cpp), and one per file of tests/<subject>/ for what crosses stages.
find_package(GTest REQUIRED)
find_package(rapidcheck QUIET)
include(GoogleTest)

add_library(peft_test_flags INTERFACE)
target_link_libraries(peft_test_flags INTERFACE peft_build_flags peft_dependencies GTest::gtest_main)
if(TARGET rapidcheck)
  target_link_libraries(peft_test_flags INTERFACE rapidcheck)
endif()
# Where the checkout is. A header and not a flag, so that ccache serves several worktrees.
file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/generated/test_paths.h @ONLY CONTENT [[
#pragma once
#define PEFT_SOURCE_DIR "@CMAKE_CURRENT_SOURCE_DIR@"
#define PEFT_BINARY_DIR "@CMAKE_CURRENT_BINARY_DIR@"
]])
target_include_directories(peft_test_flags INTERFACE ${CMAKE_CURRENT_BINARY_DIR}/generated)

# Registers the tests of a program. Names of parametrised tests are those that the test gives, not the bytes of its parameter.
function(peft_discover_tests program)
  gtest_discover_tests(${program} NO_PRETTY_VALUES DISCOVERY_TIMEOUT 120 PROPERTIES TIMEOUT 900 ${ARGN})
endfunction()

# What tests share: golden data, an oracle that knows the layouts on its own, comparisons, random plans.
file(GLOB support CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/support/*.cpp)
add_library(peft_test_support STATIC ${support})
target_include_directories(peft_test_support PUBLIC include src tests)
target_link_libraries(peft_test_support PUBLIC peft_test_flags)

# A stage's tests link the stages up to it, so that one stage can be built and tested while a later one is not.
set(objects_so_far)
foreach(stage IN LISTS PEFT_STAGES)
  if(TARGET peft_${stage})
    list(APPEND objects_so_far $<TARGET_OBJECTS:peft_${stage}>)
  endif()
  file(GLOB_RECURSE tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/${stage}/*_test.cpp)
  if(tests)
    add_executable(test_${stage} ${tests} ${objects_so_far} $<TARGET_OBJECTS:peft_families>)
    target_include_directories(test_${stage} PRIVATE include src tests)
    target_link_libraries(test_${stage} PRIVATE peft_test_flags)
    if(stage STREQUAL "execute")  # random plans
      target_link_libraries(test_${stage} PRIVATE peft_test_support)
    endif()
    peft_discover_tests(test_${stage})
  endif()
endforeach()

# A folder of tests/ is a subject; its data lies beside its tests.
file(GLOB cross_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/*/*_test.cpp)
list(FILTER cross_tests EXCLUDE REGEX "/tests/(faults|nn)/")
foreach(source IN LISTS cross_tests)
  get_filename_component(stem ${source} NAME_WE)
  add_executable(${stem} ${source})
  target_include_directories(${stem} PRIVATE src tests)
  target_link_libraries(${stem} PRIVATE peft_test_support peft peft_test_flags GTest::gmock)
  if(stem STREQUAL "golden_test")  # a program of its own, not GoogleTest
    add_test(NAME golden COMMAND golden_test)
  else()
    peft_discover_tests(${stem})
  endif()
endforeach()

# What failing disks, kills, power cuts and signals do to a run. Run as a whole it prints the table of docs/reliability.md.
file(GLOB fault_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/faults/*.cpp)
add_executable(faults_test ${fault_tests})
target_include_directories(faults_test PRIVATE src tests)
target_link_libraries(faults_test PRIVATE peft_cli_parts peft peft_test_flags)
peft_discover_tests(faults_test)

include(cmake/command_tests.cmake)

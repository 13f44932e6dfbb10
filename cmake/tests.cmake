# One test program per stage (src/<stage>/**_test.cpp), and one per file in tests/ for what crosses stages.
find_package(GTest REQUIRED)
find_package(rapidcheck QUIET)
include(GoogleTest)

add_library(peft_test_flags INTERFACE)
target_link_libraries(peft_test_flags INTERFACE peft_build_flags peft_dependencies GTest::gtest_main)
if(TARGET rapidcheck)
  target_link_libraries(peft_test_flags INTERFACE rapidcheck)
endif()
target_compile_definitions(peft_test_flags INTERFACE
  PEFT_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}" PEFT_BINARY_DIR="${CMAKE_CURRENT_BINARY_DIR}")

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
    gtest_discover_tests(test_${stage} DISCOVERY_TIMEOUT 120 PROPERTIES TIMEOUT 900)
  endif()
endforeach()

# What those share: golden data, an oracle that knows the layouts on its own, comparisons.
file(GLOB support CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/support/*.cpp)
add_library(peft_test_support STATIC ${support})
target_include_directories(peft_test_support PUBLIC include src tests)
target_link_libraries(peft_test_support PUBLIC peft_test_flags)

file(GLOB cross_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/*_test.cpp)
foreach(source IN LISTS cross_tests)
  get_filename_component(stem ${source} NAME_WE)
  add_executable(${stem} ${source})
  target_include_directories(${stem} PRIVATE src tests)
  target_link_libraries(${stem} PRIVATE peft peft_test_flags)
  if(stem MATCHES "^(golden|oracle|roundtrip|weights|config_fields|merge_[a-z]+|low_rank|no_form|router|verify_merged|heads|wild)_test$")
    target_link_libraries(${stem} PRIVATE peft_test_support peft GTest::gmock)
  endif()
  if(stem STREQUAL "golden_test")  # a program of its own, not GoogleTest
    add_test(NAME golden COMMAND golden_test)
  else()
    gtest_discover_tests(${stem} DISCOVERY_TIMEOUT 120 PROPERTIES TIMEOUT 900)
  endif()
endforeach()

# What failing disks, kills, power cuts and signals do to a run. Run as a whole it prints the table of docs/reliability.md.
file(GLOB fault_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/faults/*.cpp)
add_executable(faults_test ${fault_tests} ${CMAKE_CURRENT_SOURCE_DIR}/src/cli/interrupt.cpp)
target_include_directories(faults_test PRIVATE src tests)
target_link_libraries(faults_test PRIVATE peft peft_test_flags)
gtest_discover_tests(faults_test DISCOVERY_TIMEOUT 120 PROPERTIES TIMEOUT 900)

include(cmake/command_tests.cmake)

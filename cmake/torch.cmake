# The runtime (src/nn, on libtorch): a leaf that nothing in the core needs. PEFT_WITH_TORCH: AUTO (when torch is
# found), ON (torch or an error), OFF. Torch is found through CMAKE_PREFIX_PATH or Torch_DIR (a libtorch folder), or as
# a package of a Python: the one that PEFT_TORCH_PYTHON names, the one of tools/install_torch.sh, or python3.
# Both can be variables of the environment, too.
if(DEFINED ENV{PEFT_WITH_TORCH})
  set(wanted $ENV{PEFT_WITH_TORCH})
else()
  set(wanted AUTO)
endif()
set(PEFT_WITH_TORCH ${wanted} CACHE STRING "Build the runtime on libtorch: AUTO, ON, OFF")
set_property(CACHE PEFT_WITH_TORCH PROPERTY STRINGS AUTO ON OFF)
set(PEFT_TORCH_PYTHON "$ENV{PEFT_TORCH_PYTHON}" CACHE STRING "A Python whose torch is used; empty: build/venvs/base, else python3")
set(PEFT_PYTHON ${PEFT_TORCH_PYTHON})  # also the first choice for reading tokenizers
if(NOT PEFT_PYTHON AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/build/venvs/base/stamp)
  set(PEFT_PYTHON ${CMAKE_CURRENT_SOURCE_DIR}/build/venvs/base/bin/python)
endif()
set(PEFT_HAVE_TORCH OFF)
if(NOT PEFT_WITH_TORCH)
  return()
endif()

# Does nothing where Torch_DIR or CMAKE_PREFIX_PATH already lead to a libtorch.
if(NOT Torch_DIR)
  set(python ${PEFT_PYTHON})
  if(NOT python)
    find_program(PEFT_PYTHON3 python3)
    set(python ${PEFT_PYTHON3})
  endif()
  if(python)
    execute_process(COMMAND ${python} -c "import torch; print(torch.utils.cmake_prefix_path, end='')"
      OUTPUT_VARIABLE torch_prefix RESULT_VARIABLE torch_missing ERROR_QUIET)
    if(NOT torch_missing)
      list(APPEND CMAKE_PREFIX_PATH ${torch_prefix})
    endif()
  endif()
endif()
find_package(Torch QUIET)
if(NOT Torch_FOUND)
  if(PEFT_WITH_TORCH STREQUAL "ON")
    message(FATAL_ERROR "PEFT_WITH_TORCH is ON, and torch is not found: set PEFT_TORCH_PYTHON or CMAKE_PREFIX_PATH")
  endif()
  message(STATUS "torch is not found: the runtime is not built")
  return()
endif()
message(STATUS "torch ${Torch_VERSION}: ${Torch_DIR}")
set(PEFT_HAVE_TORCH ON)
include(cmake/torch_openmp.cmake)
peft_torch_openmp(PEFT_TORCH_OPENMP)

# Torch's headers are in few files: each costs many seconds. The precompiled header takes most of that away.
file(GLOB_RECURSE nn_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/nn/*.cpp)
list(FILTER nn_sources EXCLUDE REGEX "_test\\.cpp$")
add_library(peft_nn ${nn_sources})
add_library(peft::nn ALIAS peft_nn)
set_target_properties(peft_nn PROPERTIES EXPORT_NAME nn)
target_include_directories(peft_nn PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
                                          $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
                                   PRIVATE src)
separate_arguments(torch_flags NATIVE_COMMAND "${TORCH_CXX_FLAGS}")
target_compile_options(peft_nn PUBLIC ${torch_flags})
# Torch's folder of headers has an fmt of another version than the system's library; header-only, that does no harm.
target_compile_definitions(peft_nn PUBLIC $<BUILD_INTERFACE:FMT_HEADER_ONLY>)
# An installed peft::nn takes torch's folders from the torch that its user finds (peftConfig.cmake).
target_include_directories(peft_nn SYSTEM PUBLIC "$<BUILD_INTERFACE:${TORCH_INCLUDE_DIRS}>")
# libstdc++ first: torch's libraries carry a std::filesystem of their own, and the remove_all() of a CUDA build (2.11.0+cu130) crashes.
target_link_libraries(peft_nn PUBLIC $<$<PLATFORM_ID:Linux>:stdc++> peft "$<BUILD_INTERFACE:${TORCH_LIBRARIES}>"
  PRIVATE $<BUILD_INTERFACE:peft_dependencies> $<BUILD_INTERFACE:peft_build_flags>)
# at::parallel_for is a template: without OpenMP in our flags it is one thread. clang's OpenMP needs another runtime than torch's libgomp.
if(PEFT_TORCH_OPENMP AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(peft_nn PUBLIC $<BUILD_INTERFACE:-fopenmp>)
  target_link_libraries(peft_nn PUBLIC $<BUILD_INTERFACE:${PEFT_TORCH_OPENMP}>)
else()
  message(STATUS "no OpenMP: the runtime's own loops run on one thread")
  target_compile_definitions(peft_nn PUBLIC $<BUILD_INTERFACE:PEFT_NO_OPENMP>)
endif()
set(torch_headers <ATen/ATen.h> <ATen/Parallel.h> <torch/csrc/autograd/custom_function.h>)
peft_precompile(peft_nn PRIVATE ${torch_headers})

# One test program for tests/nn and the tests beside the sources; where there is no torch, there are no such tests.
if(PEFT_BUILD_TESTS)
  file(GLOB nn_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/nn/*.cpp)
  file(GLOB_RECURSE nn_own_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/nn/*_test.cpp)
  list(APPEND nn_tests ${nn_own_tests})
  if(nn_tests)
    add_executable(test_nn ${nn_tests})
    target_include_directories(test_nn PRIVATE src tests)
    target_link_libraries(test_nn PRIVATE peft_nn peft_test_support peft_test_flags GTest::gmock)
    peft_precompile(test_nn PRIVATE ${torch_headers})
    peft_discover_tests(test_nn)
    # The golden data once more on a GPU, where there is one.
    add_test(NAME nn_on_cuda COMMAND test_nn --gtest_filter=Golden/*:Sizes/*:LoraApi.*:AuxLoss.*:Sampling.*:Eos.*)
    set_tests_properties(nn_on_cuda PROPERTIES ENVIRONMENT PEFT_TEST_DEVICE=cuda SKIP_REGULAR_EXPRESSION "no GPU here" TIMEOUT 900)
  endif()
  # For tools/real_peft/runtime_check.py.
  add_executable(adapter_session ${CMAKE_CURRENT_SOURCE_DIR}/tests/nn/programs/adapter_session.cpp)
  target_link_libraries(adapter_session PRIVATE peft_nn)
endif()
if(PEFT_BUILD_BENCH)
  foreach(program bench_grouped bench_load bench_lora bench_model bench_train)
    add_executable(${program} ${CMAKE_CURRENT_SOURCE_DIR}/bench/nn/${program}.cpp)
    target_include_directories(${program} PRIVATE src)
    target_link_libraries(${program} PRIVATE peft_nn)
  endforeach()
endif()

include(CMakePackageConfigHelpers)
# Components: program (what runs), library (headers, the library, its CMake package and pkg-config file), torch (both for models
# that run, on the libtorch of this machine). cmake/packages.cmake makes packages of the first two.
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME library)
install(TARGETS peft EXPORT peftTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS peft_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
set(PEFT_PACKAGE_OF_program peft-cpp)
set(PEFT_PACKAGE_OF_library libpeft-cpp-dev)
foreach(component program library)
  install(FILES LICENSE python/licenses/THIRD_PARTY.txt COMPONENT ${component}
    DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${PEFT_PACKAGE_OF_${component}})
endforeach()
# The runtime is an export of its own, so that find_package(peft) without COMPONENTS nn does not look for torch.
if(PEFT_HAVE_TORCH)
  set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME torch)
  install(TARGETS peft_nn EXPORT peftNnTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT peftNnTargets NAMESPACE peft:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
  install(FILES cmake/torch_openmp.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
  # INSTALL_RPATH_USE_LINK_PATH leaves out folders inside the build tree, where tools/install_torch.sh puts libtorch.
  set(rpath ${TORCH_INSTALL_PREFIX}/lib)
  if(PEFT_TORCH_OPENMP AND NOT PEFT_TORCH_OPENMP MATCHES "^(/usr)?/lib")
    cmake_path(GET PEFT_TORCH_OPENMP PARENT_PATH folder)
    list(APPEND rpath ${folder})
    list(REMOVE_DUPLICATES rpath)
  endif()
  if(NOT SKBUILD)  # a wheel finds torch beside itself (python/CMakeLists.txt)
    set_target_properties(peft_torch PROPERTIES INSTALL_RPATH "${rpath}")
  endif()
  install(TARGETS peft_torch RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/peft)
  set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME library)
endif()
install(DIRECTORY include/peft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT peftTargets NAMESPACE peft:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
configure_package_config_file(cmake/peftConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/peftConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/peftConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/peftConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/peftConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
# For programs that are not built with CMake. The library is static: what it uses is linked, too.
file(RELATIVE_PATH PEFT_PREFIX_FROM_PKGCONFIG /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/peft.pc.in ${CMAKE_CURRENT_BINARY_DIR}/peft.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/peft.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# Installs into the build folder, then configures, builds and runs a program that knows nothing of this tree.
# Sanitized libraries are left out: a program that links them needs the same flags.
if(PEFT_BUILD_TESTS AND NOT PEFT_SANITIZE)
  add_test(NAME consumer COMMAND ${CMAKE_COMMAND} -DBUILD=${CMAKE_CURRENT_BINARY_DIR} -DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}
    -DCXX=${CMAKE_CXX_COMPILER} -DGENERATOR=${CMAKE_GENERATOR}
    -DTORCH=${Torch_DIR} -P ${CMAKE_CURRENT_SOURCE_DIR}/tests/consumer/run.cmake)
  set_tests_properties(consumer PROPERTIES TIMEOUT 900)
endif()

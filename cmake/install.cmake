include(CMakePackageConfigHelpers)
install(TARGETS peft EXPORT peftTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET peft_cli)
  install(TARGETS peft_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY include/peft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT peftTargets NAMESPACE peft:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
configure_package_config_file(cmake/peftConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/peftConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/peftConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/peftConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/peftConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/peft)

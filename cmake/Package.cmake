# Install and export: find_package(mamba) gives mamba::mamba, and mamba::data_parallel where it was built.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mamba)
install(TARGETS ${mamba_libraries} EXPORT mamba_targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/mamba DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT mamba_targets NAMESPACE mamba:: DESTINATION ${package_dir})

configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/mamba-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config-version.cmake
  ${CMAKE_CURRENT_LIST_DIR}/FindNCCL.cmake
  DESTINATION ${package_dir})

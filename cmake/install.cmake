# SPDX-License-Identifier: Apache-2.0
# Headers, libraries and a config package that may be moved after installation.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/winnow)

install(TARGETS winnow winnow_headers EXPORT winnow_targets)
install(DIRECTORY include/winnow DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(EXPORT winnow_targets NAMESPACE winnow:: FILE winnowTargets.cmake
        DESTINATION ${package_dir})

configure_package_config_file(cmake/winnowConfig.cmake.in ${PROJECT_BINARY_DIR}/winnowConfig.cmake
                              INSTALL_DESTINATION ${package_dir}
                              NO_SET_AND_CHECK_MACRO)
# While the major version is 0, a new minor version may change the API.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/winnowConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/winnowConfig.cmake
              ${PROJECT_BINARY_DIR}/winnowConfigVersion.cmake DESTINATION ${package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/winnow)

# SPDX-License-Identifier: Apache-2.0
# cmake -Dbuild=DIR -Dprefix=DIR -P install.cmake
# Installs a build and moves the result: an installed package must not know where it was put.
file(REMOVE_RECURSE ${prefix} ${prefix}.first)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${build} --prefix ${prefix}.first
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${prefix}.first ${prefix})

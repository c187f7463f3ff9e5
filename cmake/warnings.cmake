# SPDX-License-Identifier: Apache-2.0
# winnow_warnings: what our own code is compiled with. Never exported.
add_library(winnow_warnings INTERFACE)
target_compile_options(
  winnow_warnings
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion>
            $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${WINNOW_WERROR}>>:-Werror>
            # 177, unused variables, is wrong about those that only initialise a dependent type; gcc
            # warns of the rest.
            $<$<COMPILE_LANGUAGE:CUDA>:--diag-suppress=177;-Xcompiler=-Wall,-Wextra>
            $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${WINNOW_WERROR}>>:-Werror=all-warnings;-Xcompiler=-Werror>)
# gtest's typed suites call a variadic macro without arguments, as C++20 allows.
target_compile_options(
  winnow_warnings
  INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-gnu-zero-variadic-macro-arguments>)

# SPDX-License-Identifier: Apache-2.0
# winnow_warnings: what our own code is compiled with. Never exported.
add_library(winnow_warnings INTERFACE)
target_compile_options(
  winnow_warnings
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion>
            $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${WINNOW_WERROR}>>:-Werror>
            $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>
            $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${WINNOW_WERROR}>>:-Werror=all-warnings;-Xcompiler=-Werror>)

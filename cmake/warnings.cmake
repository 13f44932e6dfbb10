# Flags of our own targets: warnings, hardening, sanitizers. Not exported to users.
add_library(peft_build_flags INTERFACE)
target_compile_options(peft_build_flags INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wold-style-cast -Wdouble-promotion
  -Wformat=2 -Wimplicit-fallthrough -Wnon-virtual-dtor -Woverloaded-virtual
  -fstack-protector-strong -ffp-contract=off
  # With optimization g++ 12 sees overlaps and uninitialized reads in std::string and std::optional that are not
  # there (GCC bugs 105329, 105651, 105562).
  $<$<AND:$<NOT:$<CONFIG:Debug>>,$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>
  $<$<AND:$<NOT:$<CONFIG:Debug>>,$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-maybe-uninitialized>
  $<$<BOOL:${PEFT_WERROR}>:-Werror>)
if(PEFT_SANITIZE)
  target_compile_options(peft_build_flags INTERFACE -fsanitize=${PEFT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(peft_build_flags INTERFACE -fsanitize=${PEFT_SANITIZE})
else()
  target_compile_definitions(peft_build_flags INTERFACE $<$<CONFIG:Debug>:_GLIBCXX_ASSERTIONS>)
endif()

# Precompiled headers take the parsing of large headers out of every source that uses them. ccache serves such sources with
# -fpch-preprocess and with the sloppiness that the build presets set.
function(peft_precompile target)
  target_precompile_headers(${target} ${ARGN})
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endfunction()

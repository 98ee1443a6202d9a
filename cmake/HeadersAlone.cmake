# Compiles each public header on its own: every header includes what it needs, as plain C++17.
file(GLOB public_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include
     ${PROJECT_SOURCE_DIR}/include/mamba/*.hpp ${PROJECT_SOURCE_DIR}/include/mamba/detail/*.hpp)
set(alone_sources "")
foreach(header IN LISTS public_headers)
  string(MAKE_C_IDENTIFIER ${header} name)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/headers_alone/${name}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "#include <${header}>\n#include <${header}>  // twice\n")
  list(APPEND alone_sources ${source})
endforeach()
add_library(mamba_headers_alone OBJECT ${alone_sources})
target_include_directories(mamba_headers_alone PRIVATE ${PROJECT_SOURCE_DIR}/include)
target_compile_features(mamba_headers_alone PRIVATE cxx_std_17)
target_compile_options(mamba_headers_alone PRIVATE ${mamba_warnings} -Wconversion -Wpedantic)

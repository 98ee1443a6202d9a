# BLIS, serial build: our own threads cut the work, so the library must have none. Defines BLIS::BLIS.
# Debian's libblis-serial-dev keeps header and static library in folders named blis-serial.
find_path(BLIS_INCLUDE_DIR blis.h PATH_SUFFIXES blis-serial blis)
find_library(BLIS_LIBRARY NAMES libblis.a blis PATH_SUFFIXES blis-serial)
mark_as_advanced(BLIS_INCLUDE_DIR BLIS_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(BLIS REQUIRED_VARS BLIS_LIBRARY BLIS_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "On Debian: apt-get install libblis-serial-dev")

if(BLIS_FOUND AND NOT TARGET BLIS::BLIS)
  add_library(BLIS::BLIS UNKNOWN IMPORTED)
  set_target_properties(BLIS::BLIS PROPERTIES
    IMPORTED_LOCATION "${BLIS_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${BLIS_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "m;pthread")
endif()

"""Topic models of other libraries, one file each; `library` fits them."""

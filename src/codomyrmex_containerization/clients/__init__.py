"""How are services outside of this host's engines spoken to? Registries of images over HTTP, and the credentials for them."""

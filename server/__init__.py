"""The edge: sockets, HTTP, people and permissions. Never touches a pixel or a sample."""

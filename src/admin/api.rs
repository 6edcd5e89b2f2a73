//! The API in Traefik's shape.

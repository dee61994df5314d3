"""Tests of the optional endpoints ("doors"): forward auth, OAuth and OpenAPI, also with real clients and gateways."""

"""Certificates: a layer held against the exact convolution, within derived bounds."""

from constructions.certificate.bounds import layer_bound
from constructions.certificate.certificate import Certificate, certify
from constructions.certificate.equivalence import assert_equivalent
from constructions.certificate.masses import gap_mass, leak, off_target_mass
from constructions.certificate.mixing import mixing_bound
from constructions.certificate.networks import NetworkCertificate, certify_layers
from constructions.certificate.rounding import (
    ROUND_UP,
    UNDERFLOW,
    exponential_error,
    gamma,
    head_rounding,
)
from constructions.matrix_units import Products, Settings, products_of

__all__ = [
    "ROUND_UP",
    "UNDERFLOW",
    "Certificate",
    "NetworkCertificate",
    "Products",
    "Settings",
    "assert_equivalent",
    "certify",
    "certify_layers",
    "exponential_error",
    "gamma",
    "gap_mass",
    "head_rounding",
    "layer_bound",
    "leak",
    "mixing_bound",
    "off_target_mass",
    "products_of",
]

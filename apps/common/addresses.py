"""Who counts as one client where there is nothing but an address to tell."""

from ipaddress import IPv4Address, ip_address, ip_network

SITE = 64  # bits of an IPv6 address that are a site's; the rest is for whoever is there to choose


def group_of(address: str) -> str:
    """The address for IPv4, its network for IPv6; what is no address stays as it is."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ip_network((found, SITE), strict=False))

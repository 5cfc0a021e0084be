"""The demo: the whole loop on a real retail panel, against customers whose response is known.

``panel`` fetches and cleans the data package, ``segments`` groups its households, ``world`` fits
how they respond to discounts, ``run`` shows the service learning it, ``study`` repeats that over
many seeds.
"""

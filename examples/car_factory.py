"""A car factory: three calls in a row, and one trip over the network.

Each call is sent to the promise of the one before. The messages go out together, and the builder's side passes each on
as soon as it knows to whom: that is promise pipelining.
"""

from __future__ import annotations

import trio

import ocapn
from ocapn import E, Symbol


class Car(ocapn.Target):
    def __init__(self, model: str, color: str) -> None:
        self.model = model
        self.color = color

    @ocapn.method
    def drive(self) -> str:
        return f"Vroom! I am a {self.color} {self.model} car!"


class CarFactory(ocapn.Target):
    @ocapn.method(name="make-car")
    def make_car(self, color: Symbol, model: Symbol) -> Car:
        return Car(model.name, color.name)


class Builder(ocapn.Target):
    @ocapn.method
    def build(self) -> CarFactory:
        return CarFactory()


async def main() -> str:
    async with (
        ocapn.open_peer([ocapn.NoiseNetlayer()]) as works,
        ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as customer,
    ):
        builder = await customer.enliven(works.export(Builder()))
        factory = E(builder).build()
        # A name that is no Python identifier is sent with brackets.
        car = factory["make-car"](Symbol("red"), Symbol("zoomracer"))
        noise = car.drive()
        answer: str = await noise  # the only place where anything waits
        return answer


if __name__ == "__main__":
    print(trio.run(main))

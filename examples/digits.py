"""Train a small convolutional network on handwritten digits, compile it, and export it as a library."""

from __future__ import annotations

import numpy as np

import lepton_jit as lpt
from lepton_jit.datasets import mnist


def main() -> None:
    data = mnist()
    x, y = data["train_images"].astype(np.float32) / 255, data["train_labels"]
    x_test, y_test = data["test_images"].astype(np.float32) / 255, data["test_labels"]
    model = lpt.Sequential(
        [
            lpt.Conv2D(32, (3, 3), activation="relu", input_shape=(28, 28, 1)),
            lpt.MaxPooling2D((2, 2)),
            lpt.Conv2D(64, (3, 3), activation="relu"),
            lpt.MaxPooling2D((2, 2)),
            lpt.Flatten(),
            lpt.Dense(128, activation="relu"),
            lpt.Dropout(0.25),
            lpt.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, epochs=10, batch_size=64, validation_split=0.2)
    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    print(f"test loss {loss:.4f}, test accuracy {accuracy:.4f}")

    fast = lpt.compile(model)
    print(fast.plan)
    fast.export("digits.so")
    assert (lpt.load("digits.so")(x_test) == fast(x_test)).all()
    print("digits.so and digits.h: written; the library gives the same answers")


if __name__ == "__main__":
    main()

"""Local SGD: the model, its optimizer and its data on one device. It knows no network and no Ray."""

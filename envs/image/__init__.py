"""Images and other vectors, made by denoising."""

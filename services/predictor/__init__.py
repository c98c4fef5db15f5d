"""Serves models: KServe v2 and the teachwafer API on onnxruntime."""

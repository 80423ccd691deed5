// The slots a tier of simd.inl improves.
void install(Kernels& k) {
    k.convert = convert;
    k.embedding = embedding;
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.linear = linear;
    k.rope = rope;
    k.kv_write = kv_write;
    k.rope_kv_write = rope_kv_write;
    k.attention = attention;
    k.attention_merge = attention_merge;
    k.activation = activation;
    k.gated = gated;
    k.add = add;
    k.scale = scale;
    k.gather_columns = gather_columns;
    k.softmax = softmax;
    k.argmax = argmax;
    k.nonfinite = nonfinite;
    k.top_k = top_k;
    k.sample = sample;
    k.quantize = quantize;
    k.quantize_weight = quantize_weight;
    k.pack = pack;
    k.unpack = unpack;
    k.route = route;
    k.combine = combine;
    k.measure_read = measure_read;
    k.measure_f32 = k.measure_bf16 = measure_f32;  // for lack of anything faster
}

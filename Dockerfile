# lw_jax on a CPU:
#   docker build -t lw_jax .
#   mkdir -p runs && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/work/runs" lw_jax train configs/quickstart.yaml
#   docker run --rm -p 8000:8000 lw_jax serve zoo/bridges/facts --demo --host 0.0.0.0
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY lw_jax lw_jax
COPY configs configs
COPY zoo zoo
RUN pip install --no-cache-dir ".[serve,tensorboard,gguf]" --constraint requirements.txt
# Whoever runs it, by any number: what is written goes to /work and /cache.
RUN mkdir -p /work/runs /cache && chmod -R 1777 /work /cache
ENV HOME=/work JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=/cache
USER 1000
WORKDIR /work
ENTRYPOINT ["lw-jax"]
CMD ["--help"]
